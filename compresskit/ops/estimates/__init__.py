"""What each stage could do with a model, told before anything is tried."""
