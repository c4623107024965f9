"""Searched networks as plain PyTorch: readable source, safetensors weights and a card, verified elsewhere."""
