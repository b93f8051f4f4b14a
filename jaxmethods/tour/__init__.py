"""The main job: the five transforms composed in one training run, with a report.

`python -m jaxmethods tour` trains a network on real digits whose loss holds a certified
bound, whose gradients have five bits, whose exchange is compressed and whose dense
layers are split; then it certifies, attacks, explains and measures what it trained.
"""
