"""One file a task: every concrete subclass of ``nasbench_grow.contract.task.Task`` defined here is found by name."""
