"""What a peer trains and exchanges: parameters, gradients or coefficients."""
