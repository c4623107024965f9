"""Neural architecture search over convolution decompositions."""
