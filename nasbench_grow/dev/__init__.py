"""Tools that measure the suite itself: no user's command imports them."""
