-module(p).
-export([start/0]).

run(Q, P) -> case sqlite3:sql_exec(app, Q, P) of {error, _, Text} -> erlang:error(Text); R -> R end.

start() ->
    [So, D, How] = init:get_plain_arguments(),
    {ok, _} = sqlite3:open(app, [{file, D ++ "/app.db"}]),
    sqlite3:enable_load_extension(app, 1),
    run("SELECT load_extension(?)", [So]),
    run("SELECT walrust_watch(?)", [D ++ "/replica"]),
    run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", []),
    [run("INSERT INTO t(v) VALUES(?)", [I]) || I <- lists:seq(1, 100)],
    run("SELECT walrust_sync()", []),
    run("SELECT walrust_restore(?, ?)", [D ++ "/replica", D ++ "/copy.db"]),
    run("INSERT INTO t(v) VALUES('last')", []),
    case How of
        "close" -> sqlite3:close(app), halt(0);
        "throw" -> io:format(standard_error, "nobody catches this~n", []), halt(1);
        _ -> halt(0)
    end.
