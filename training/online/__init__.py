"""The online learner: a process of the Trainer that learns from single examples."""
