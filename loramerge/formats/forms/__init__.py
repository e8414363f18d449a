"""Reparameterised forms: what a module stores that is no plain pair, made into one.

A form says what it needs: its file, sizes of layers, or weights. A base model is known here only as `Base`,
which rooms above open. Sizes come from headers; a weight is read when its module is. A form that is not
linear in alpha has every number in its formula, so that nothing is scaled twice. What its file cannot settle,
such as an order of layers or a draw of a GPU, is refused.
"""
