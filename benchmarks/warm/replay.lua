-- A script for wrk: sends the requests of a file unchanged, in turn if it has several, and prints the
-- results as one line of JSON. Without a function `request`, wrk calls `wrk.format` once after this
-- `init`, and repeats that request.

function init(arguments)
   local file = assert(io.open(arguments[1], "rb"))
   local text = file:read("*a")
   file:close()
   local requests, from = {}, 1
   while from <= #text do
      local _, to = text:find("\r\n\r\n", from, true)
      requests[#requests + 1] = text:sub(from, to)
      from = to + 1
   end
   if #requests == 1 then
      wrk.format = function() return requests[1] end
      return
   end
   local at = 0
   request = function()
      at = at % #requests + 1
      return requests[at]
   end
end

function done(summary)
   local failed = summary.errors
   print(string.format(
      '{"requests": %d, "seconds": %.6f, "bytes": %.0f, "failed": "%s"}',
      summary.requests, summary.duration / 1e6, summary.bytes,
      failed.connect + failed.read + failed.write + failed.status + failed.timeout == 0 and "" or
      string.format("connect %d, read %d, write %d, status %d, timeout %d", failed.connect,
         failed.read, failed.write, failed.status, failed.timeout)))
end
