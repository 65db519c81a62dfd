"""Who may do what: tokens with scopes, the scope of every route, and an end to guessing."""
