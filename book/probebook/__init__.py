"""What the chapters share and a user's own model does not need: data, models, training recipes."""
