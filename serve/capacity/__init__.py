"""`skyreward plan`: what a load needs. From shape and device to memory, replicas, gateways, nodes.

`shape` and `devices` say what there is, `replica` what one copy of the model holds and does,
`fleet` how many of everything, `queueing` how long requests wait, `measure` replaces what is
inferred by what this machine does. Start at `plan`.
"""
