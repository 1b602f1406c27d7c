# The only three kinds of targets of the project. LINKS mirrors the dependency arrows of docs/ARCHITECTURE.md: the link graph is the layering.
set(ULTRASPEED_WARNINGS -Wall -Wextra -Werror)
set(ULTRASPEED_TEST_TIMEOUT 300)  # seconds of one test program

function(ultraspeed_configure target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${target} PRIVATE ${ULTRASPEED_OPTIONS} $<$<COMPILE_LANGUAGE:CXX>:${ULTRASPEED_WARNINGS}>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra -Werror=all-warnings>)
endfunction()

# Uses PrecompiledHeaders.cmake's header unless PLAIN is given. GCC 12 forgets of a precompiled header that it is the system's, and warns of
# moves within std::string.
function(ultraspeed_use_headers target plain)
  if(ULTRASPEED_SERVING AND NOT plain)
    target_precompile_headers(${target} REUSE_FROM ultraspeed_headers)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-array-bounds;-Wno-restrict;-Wno-stringop-overflow;-Wno-stringop-overread>")
  else()
    set_target_properties(${target} PROPERTIES UNITY_BUILD OFF)
  endif()
endfunction()

# ultraspeed_alone(SOURCE ...): compiled one by one where others of their target are compiled together (CMAKE_UNITY_BUILD, which the presets
# cpu-release and cpu-tsan set), because local names are those of another file. Names of all sources of a target are counted, so batches may have any size.
function(ultraspeed_alone)
  if(ARGN)
    set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# ultraspeed_library(NAME [PLAIN] SOURCES a.cc ... [ALONE b.cc ...] LINKS t ...)
function(ultraspeed_library name)
  cmake_parse_arguments(ARG "PLAIN" "" "SOURCES;ALONE;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES} ${ARG_ALONE})
  ultraspeed_alone(${ARG_ALONE})
  ultraspeed_configure(${name})
  ultraspeed_use_headers(${name} ${ARG_PLAIN})
  target_link_libraries(${name} PUBLIC ${ARG_LINKS})
endfunction()

add_custom_target(programs)  # every program, no test

# ultraspeed_program(NAME [PLAIN] SOURCES main.cc ... [ALONE b.cc ...] LINKS t ...)
function(ultraspeed_program name)
  cmake_parse_arguments(ARG "PLAIN" "" "SOURCES;ALONE;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${ARG_ALONE})
  ultraspeed_alone(${ARG_ALONE})
  add_dependencies(programs ${name})
  ultraspeed_configure(${name})
  ultraspeed_use_headers(${name} ${ARG_PLAIN})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} ${ULTRASPEED_TSAN})
endfunction()

add_custom_target(gpu_tests)        # every test with the label gpu
add_custom_target(multi_gpu_tests)  # likewise multi-gpu: at least two GPUs

# ultraspeed_test(NAME LABEL unit|model|cluster|tidy|gpu|multi-gpu [OPTIMIZED] SOURCES a_test.cc ... [ALONE b_test.cc ...] LINKS t ...). Tests run from the repository
# root. Their own code is not optimized (PrecompiledHeaders.cmake); OPTIMIZED is for tests that compute much themselves.
function(ultraspeed_test name)
  cmake_parse_arguments(ARG "OPTIMIZED" "LABEL" "SOURCES;ALONE;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${ARG_ALONE})
  ultraspeed_alone(${ARG_ALONE})
  ultraspeed_configure(${name})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} ${ULTRASPEED_TSAN} GTest::gtest GTest::gmock GTest::gtest_main)
  if(NOT ARG_OPTIMIZED)
    target_compile_options(${name} PRIVATE ${ULTRASPEED_TEST_OPTIONS})
    target_precompile_headers(${name} REUSE_FROM ultraspeed_test_headers)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ULTRASPEED_TEST_TIMEOUT})
  if(ARG_LABEL STREQUAL gpu)
    add_dependencies(gpu_tests ${name})
  elseif(ARG_LABEL STREQUAL multi-gpu)
    add_dependencies(multi_gpu_tests ${name})
  endif()
endfunction()
