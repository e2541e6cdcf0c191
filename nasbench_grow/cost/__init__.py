"""What a network and its training cost, in multiply-accumulates."""
