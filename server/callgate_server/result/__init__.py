"""What a tool gave back is hostile until checked: secrets out, control characters named, size known."""
