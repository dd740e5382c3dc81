"""What a person reads: reports and inspections drawn for a terminal or a pull request."""
