"""Networks, what they answer, and how they are stored, versioned and found."""
