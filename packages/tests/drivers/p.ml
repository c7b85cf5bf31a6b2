open Sqlite3
let so, d, how = Sys.argv.(1), Sys.argv.(2), Sys.argv.(3)
let db = db_open (d ^ "/app.db")
let run sql ps =
  let s = prepare db sql in
  List.iteri (fun i p -> ignore (bind s (i + 1) (Data.TEXT p))) ps;
  (match step s with Rc.ROW | Rc.DONE -> () | _ -> failwith (errmsg db));
  ignore (finalize s)
let () =
  ignore (enable_load_extension db true);
  run "SELECT load_extension(?)" [so];
  run "SELECT walrust_watch(?)" [d ^ "/replica"];
  run "CREATE TABLE t(id INTEGER PRIMARY KEY, v)" [];
  for i = 1 to 100 do run "INSERT INTO t(v) VALUES(?)" ["row " ^ string_of_int i] done;
  run "SELECT walrust_sync()" [];
  run "SELECT walrust_restore(?, ?)" [d ^ "/replica"; d ^ "/copy.db"];
  run "INSERT INTO t(v) VALUES('last')" [];
  match how with "close" -> ignore (db_close db) | "throw" -> failwith "nobody catches this" | _ -> exit 0
