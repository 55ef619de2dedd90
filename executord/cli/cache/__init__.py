"""The subcommands of `executorctl cache`, and what they show."""
