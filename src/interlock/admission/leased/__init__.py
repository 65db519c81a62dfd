"""What admission through a server and through Redis have in common: permits that are leased."""
