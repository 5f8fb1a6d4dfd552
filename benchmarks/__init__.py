"""What the provider costs, beside what a user would pick instead."""
