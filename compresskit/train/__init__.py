"""The one training loop; whatever trains passes it a loss."""
