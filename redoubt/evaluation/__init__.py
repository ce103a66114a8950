"""Evaluation: accuracy clean and under attack (`accuracy`), intervals, and the robustness report (`robustness`)."""
