"""`skyreward plan`: memory, replicas, gateways and nodes for a load, from model shape and device.

`shape` and `devices` describe the model and the GPU, `replica` estimates memory and rate of one
replica, `fleet` sizes replicas, gateways and nodes, `queueing` simulates latency, and `measure`
replaces estimates by measurements on the local device. The entry point is `plan`.
"""
