"""How others see a consumer: metrics, probes and traces."""
