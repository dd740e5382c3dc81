"""Two forms of a model side by side: where their layers' outputs part."""
