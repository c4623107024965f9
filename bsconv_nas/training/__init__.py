"""The training room: data sets, recipes and the loop for one candidate; it runs on a bare PyTorch machine."""
