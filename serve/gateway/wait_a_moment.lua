-- For HAProxy: keeps a request for 20 ms, after which the rules that follow look again.
core.register_action("wait_a_moment", { "http-req" }, function()
  core.msleep(20)
end)
