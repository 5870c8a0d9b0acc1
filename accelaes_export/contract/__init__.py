"""What a bundle says about itself, as data: tensors, geometry, types, weights, and whether all of it agrees."""
