"""Where messages come from and are answered: streaming pull or pushes. Nothing else acks."""
