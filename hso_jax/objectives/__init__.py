"""What a schedule costs: bounds that need nodes alone, and the error that is measured on problems."""
