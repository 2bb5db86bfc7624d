"""What made the model focus: pictures drawn and blurred here, and the training on them."""
