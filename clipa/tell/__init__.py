"""What a run has recorded, told to trackers of experiments: TensorBoard, W&B, trackio, MLflow. Never by the trainer."""
