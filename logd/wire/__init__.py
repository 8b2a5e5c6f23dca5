"""The protocol between clients, brokers and peers: frames, and typed messages inside them."""
