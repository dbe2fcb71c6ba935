-- For HAProxy: delays a request by 20 ms, after which the following rules are evaluated.
core.register_action("delay", { "http-req" }, function()
  core.msleep(20)
end)
