"""The daemon with the target model: sessions, the batch loop, the services in front of them."""
