"""What acceleration costs in quality: the same prompts and noises under every policy, against dense."""
