"""Golden cases: outputs of the released PyTorch code."""
