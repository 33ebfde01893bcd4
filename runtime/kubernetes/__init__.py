"""Run a step on several machines: a Kubeflow Trainer `TrainJob` that the step's pod creates, follows and owns."""
