-- LuaSQL forbids extensions: "preload" is the module of C that puts walrust into its SQLite.
require "preload"
local _, d, how = arg[1], arg[2], arg[3]
local env = require("luasql.sqlite3").sqlite3()
local db = env:connect(d .. "/app.db")
local function run(sql)
  local c = assert(db:execute(sql))
  if type(c) == "userdata" then c:fetch(); c:close() end
end
run("SELECT walrust_watch('" .. d .. "/replica')")
run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
for i = 1, 100 do run("INSERT INTO t(v) VALUES(" .. i .. ")") end
run("SELECT walrust_sync()")
run("SELECT walrust_restore('" .. d .. "/replica', '" .. d .. "/copy.db')")
run("INSERT INTO t(v) VALUES('last')")
if how == "close" then db:close(); env:close() elseif how == "throw" then error("nobody catches this") else os.exit(0) end
