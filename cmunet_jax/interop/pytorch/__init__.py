"""What needs PyTorch, of the extras `onnx` and `bench`; nothing imports it at its start."""
