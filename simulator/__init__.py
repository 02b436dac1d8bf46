"""The production code on a virtual clock: the verifier's batch loop, drafting sessions and the scheduler as they are, around a
modelled engine, modelled drafters and a modelled network."""
