"""`skyreward plan`: memory, throughput and replicas for a load, from a model's shape and a device.

`shape` and `devices` describe the model and the GPU, `replica` estimates memory and rate of one
replica, `measure` measures them on the local device instead, and `plan` divides the load by the
rate.
"""
