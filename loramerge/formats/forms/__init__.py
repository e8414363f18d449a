"""Reparameterised forms: ways to store an update that is no plain pair, and how a pair is made of them.

A form says what it needs: its file, the sizes of layers, or their weights. Here a base model is only a
`Base`, which a room above opens. Sizes come from headers; a weight is read together with its module. If a
form is not linear in alpha, its formula holds every number, so that nothing is scaled twice. If a file leaves
something open, such as the order of layers or random numbers of a GPU, it is refused.
"""
