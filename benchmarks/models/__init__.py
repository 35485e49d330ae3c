"""Small trained diffusion and flow models that the benchmarks run on: data, networks, training, loading."""
