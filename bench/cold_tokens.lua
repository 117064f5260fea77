-- wrk: each request with the next token of the file that its first argument names
local requests, turn = {}, 0

function init(args)
  for token in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format(nil, nil, {["Host"] = wrk.headers["Host"], ["Authorization"] = "Bearer " .. token})
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
