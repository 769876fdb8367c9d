"""Wire formats of other services, one file each; each translates to and from `serve.get_reward_client`."""
