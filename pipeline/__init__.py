"""The DAG of the steps, its local runner and its compiler."""
