"""What may happen to a training, one file for each kind of thing; ``registry`` lists them."""
