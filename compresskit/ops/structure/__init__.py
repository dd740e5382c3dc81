"""What a model does on real samples: how linear its blocks are, which units switch, how many pieces it is made of."""
