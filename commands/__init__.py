"""Commands beside the pipeline: fetch and deliver data, plan a run, predict, compare, measure published weights."""
