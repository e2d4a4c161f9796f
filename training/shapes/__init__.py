"""The shapes data set: drawn scenes, questions, four-stage answers, and judge examples, all by seed."""
