"""What arrived: pure functions on tensors for quality, fidelity, calibration and speed, and what they prove."""
