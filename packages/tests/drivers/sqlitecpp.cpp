#include <SQLiteCpp/SQLiteCpp.h>
#include <cstdlib>
#include <stdexcept>
#include <string>

static void run(SQLite::Database &db, const char *sql, std::initializer_list<std::string> values = {}) {
  SQLite::Statement s(db, sql);
  int i = 1;
  for (const auto &v : values) s.bind(i++, v);
  s.executeStep();
}

int main(int, char **a) {
  std::string d = a[2], how = a[3];
  auto *db = new SQLite::Database(d + "/app.db", SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE);
  db->loadExtension(a[1], nullptr);
  run(*db, "SELECT walrust_watch(?)", {d + "/replica"});
  run(*db, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
  for (int i = 0; i < 100; i++) run(*db, "INSERT INTO t(v) VALUES(?)", {std::to_string(i)});
  run(*db, "SELECT walrust_sync()");
  run(*db, "SELECT walrust_restore(?, ?)", {d + "/replica", d + "/copy.db"});
  run(*db, "INSERT INTO t(v) VALUES('last')");
  if (how == "throw") throw std::runtime_error("nobody catches this");
  if (how == "exit") exit(0);
  delete db;
}
